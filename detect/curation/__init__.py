"""Tools for data sets: check, mend, count, convert, download, draw. Training needs none of them."""
