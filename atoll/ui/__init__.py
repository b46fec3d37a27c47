"""The dashboard: pure view models and chart options, the pages that show them, and the Prometheus text."""
