"""What runs leave behind: records, the store that holds them, and how runs stand."""
