"""Correlation and calibration of accept rates that are predicted before sampling, by what they are predicted from."""
