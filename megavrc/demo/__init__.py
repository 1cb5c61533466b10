"""The demonstration: from videos to a report."""
