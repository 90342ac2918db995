"""The work of a launch: searches, final trainings, comparisons."""
