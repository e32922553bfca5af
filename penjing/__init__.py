"""Penjing: takes a trained network and gives back a small, fast one, finished."""
