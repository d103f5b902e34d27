-- Takes an agent that went of its own will off the list.
-- ARGV: agent
local agent = ARGV[1]
if redis.call('ZREM', P .. 'agents', agent) == 1 then
  tell_of_worker('offline', node_of(agent), '{}', now())
end
redis.call('DEL', P .. 'agent:' .. agent)
return 'OK'
