"""Deployment on Flower: the two apps that serve every scenario, and what starts them."""
