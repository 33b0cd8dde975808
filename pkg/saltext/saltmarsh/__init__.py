"""Saltmarsh as a Salt extension: what Salt's loader finds when the wheel is installed."""
