"""The figures of a report: pure functions from values to PNG, by matplotlib without a screen."""
