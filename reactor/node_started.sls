#!jinja|yaml
{#- A minion chooses the tag and the data of its events: they only tell the engine to look at a node. #}
saltmarsh_node_started:
  runner.elastic.nudge:
    - args:
      - node: {{ data.get('id') | json }}
