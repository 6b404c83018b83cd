"""Coverage-guided fuzzing: `python -m fuzz.envelope [SECONDS]`, for as long as one likes."""
