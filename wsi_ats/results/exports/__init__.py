"""Results for other tools, one file for each tool."""
