#!jinja|yaml
{#- A minion chooses the tag and the data of its events: this only tells the engine to look. #}
saltmarsh_node_started:
  runner.elastic.nudge: []
