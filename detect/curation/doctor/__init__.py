"""The doctor of data: what `detect data check` looks for, tells and mends."""
