"""The report: statistics of an evaluation and the page that shows them."""
