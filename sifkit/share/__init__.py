"""Images in registries: pushed and pulled with their manifest, bill of materials and verification report."""
