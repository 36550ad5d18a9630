"""Analysis: from run records to tables, figures and a report. It reads records and nothing else of the harness."""
