"""`vgpud ctl`: verbs for people and programs that call methods of the control API."""
