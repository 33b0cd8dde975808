roles:
  - node
