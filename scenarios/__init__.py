"""Scenario files, shipped as package data; `fedsim list scenarios` prints them."""
