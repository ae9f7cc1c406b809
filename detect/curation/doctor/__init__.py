"""The checks of `detect data check`, and the repair of a data set."""
