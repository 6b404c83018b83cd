"""Coverage-guided fuzzing: `make fuzz`, or `python -m fuzz.envelope [SECONDS [FOLDER]]`; so `fuzz.doors`."""
