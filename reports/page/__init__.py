"""The report's page: one file with tables, figures, runs and a rollout browser, without network."""
