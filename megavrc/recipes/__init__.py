"""What joins the parts below it: the demonstration and its report, the doctor."""
