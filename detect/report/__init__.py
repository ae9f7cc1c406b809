"""Results for people: tables, pictures, and the report as an HTML page."""
