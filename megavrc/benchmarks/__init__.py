"""What the parts cost on this machine, beside what they are measured against."""
