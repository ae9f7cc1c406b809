"""Reading of data sets, and loading of padded batches."""
