"""Mixtures of a run's experts and of others: opened, made, compared, by the operator's verbs."""
