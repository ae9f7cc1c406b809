"""Presentation of results: tables, pictures, and the report as an HTML page."""
