"""Facts for `sifkit check`, gathered once: of the config, the image, the checkout, this host, the site and the job."""
