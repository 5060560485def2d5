"""From stored results to tables and figures; :func:`benchmarks.report.report` puts them together."""
