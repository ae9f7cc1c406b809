"""Region proposals: selective search, a store on disk, and recall."""
