"""Other people's programs that suites are measured beside."""
