"""What people look at: the report, its tables, texts and pictures, and explanations of one mammogram."""
