"""Decisions, all pure: which endpoints may serve a request and in what order, how work is cut, what a failure means."""
