"""Commands of the project and what they share: tasks, heuristics, reports, settings by flag."""
