"""Files of stock model folders: settings, safetensors, copies, and models of a hub."""
