"""What people and programs read: the failure text, the summary section, the JSON report."""
