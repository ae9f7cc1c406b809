"""Tools for data sets: check, repair, statistics, conversion, download, drawn shapes. Training needs none of them."""
