"""Networks, each cut into a backbone and a trunk."""
