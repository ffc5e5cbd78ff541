"""`vgpud ctl`: verbs for people and programs, each of them some calls of the control API."""
