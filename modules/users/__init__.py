"""Who exists: user name, role, active or not. No passwords live here."""
