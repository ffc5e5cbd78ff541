"""The handlers of the control API's methods, by subject."""
