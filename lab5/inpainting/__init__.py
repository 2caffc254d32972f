"""The frozen pair fills pictures: tokens of images, the pair, from holes to filled images."""
