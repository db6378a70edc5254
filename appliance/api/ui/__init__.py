"""The web interface: pages rendered here, a little JavaScript, every change a call of the API."""
