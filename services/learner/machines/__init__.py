"""A run's ranks on several machines: `crew` on the learner that serves the run, `helper` on the others."""
