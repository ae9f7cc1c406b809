"""Work on many processes or machines: an engine schedules and retries parts that this package makes idempotent."""
