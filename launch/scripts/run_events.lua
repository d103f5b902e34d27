-- Tells whoever listens (Flower, `celery events`) what becomes of runs, as Celery tells of tasks: see launch.run_events.
-- An event is published by the script that records the state. So events come in the order of the states, whoever moves
-- a run, and none is lost between the record and its telling. Nobody may listen, and nothing here may fail a write:
-- what cannot be said is left unsaid.
-- DB is the number of the database, which kombu puts into the channel's name. The envelope is what kombu's Redis
-- transport publishes to a fanout exchange. As with Celery's own events, those of tasks come as a list, and each of a
-- worker by itself, since workers that listen to each other (gossip) would die of a list:
-- https://docs.celeryq.dev/en/stable/userguide/monitoring.html#event-reference

local MOST_SAID = 8000

-- Publishes a JSON text; returns how many listen.
local function publish(route, body, hostname)
  local heard = redis.pcall('PUBLISH', '/' .. DB .. '.celeryev/' .. route,
    '{"body":' .. cjson.encode(body) .. ',"content-encoding":"utf-8","content-type":"application/json",' ..
    '"headers":{"hostname":' .. cjson.encode(hostname) .. '},"properties":{"delivery_mode":1,"priority":0,' ..
    '"delivery_info":{"exchange":"celeryev","routing_key":"' .. route .. '"},"delivery_tag":"openlaunch"}}')
  return type(heard) == 'number' and heard or 0
end

-- Publishes events of runs, each a JSON object as text; returns how many listen.
local function publish_tasks(events)
  return publish('task.multi', '[' .. table.concat(events, ',') .. ']', 'launch')
end

local function is_heard()
  return publish_tasks({}) > 0
end

-- Adds fields, `name = JSON text`, to a JSON object as text.
local function with(object, fields)
  local parts = {}
  for name, value in pairs(fields) do
    parts[#parts + 1] = '"' .. name .. '":' .. value
  end
  local inner = string.sub(object, 2, -2)
  return '{' .. inner .. (inner ~= '' and ',' or '') .. table.concat(parts, ',') .. '}'
end

-- The end, or the start, of a text that may be long, in whole characters.
local function last_of(text)
  return #text <= MOST_SAID and text or (string.gsub(string.sub(text, -MOST_SAID), '^[\128-\191]+', ''))
end

local function first_of(text)
  return #text <= MOST_SAID and text or (string.gsub(string.sub(text, 1, MOST_SAID), '[\192-\255]?[\128-\191]*$', ''))
end

-- The Celery node of an agent, as it says itself.
local function node_of(agent)
  local said = redis.call('HGET', P .. 'agent:' .. agent, 'nodename')
  return said and cjson.decode(said) or agent
end

-- The node that tells of a run which no agent ever had: one that serves its queue, or else what says that none does.
local function node_for(queue)
  local since = now() - 60
  for _, agent in ipairs(redis.call('ZRANGE', P .. 'agents', '+inf', since, 'BYSCORE', 'REV', 'LIMIT', 0, 8)) do
    local queues = redis.call('HGET', P .. 'agent:' .. agent, 'queues')
    if queues and string.find(queues, '"' .. queue .. '"', 1, true) then
      return node_of(agent)
    end
  end
  return 'no-agent@' .. queue
end

local function fields_of_end(event, cause, summary, started_at, at)
  local fields = {}
  if started_at then
    fields.runtime = stamp(at - tonumber(started_at))
  end
  if event == 'succeeded' then
    fields.result = cjson.encode(first_of(summary or ''))
  else
    local why = cjson.decode(cause or '{}')
    fields.exception = cjson.encode(first_of(why.message or ''))
    fields.traceback = cjson.encode(last_of(table.concat(why.log_tail or {}, '\n')))
  end
  return fields
end

local function say(id, events, note, at)
  local r = redis.call('HMGET', run_key(id), 'brief', 'worker', 'queue', 'attempt', 'claimed_at', 'started_at', 'cause',
    'summary', 'ended_at')
  local hostname = r[2] or node_for(r[3])
  local said = {}
  for _, event in ipairs(events) do
    local fields = r[9] and fields_of_end(event, r[7], r[8], r[6], at) or {}
    fields.uuid, fields.type = cjson.encode(id), '"task-' .. event .. '"'
    fields.hostname, fields.timestamp = event == 'sent' and '"launch"' or cjson.encode(hostname), stamp(at)
    fields.retries = string.format('%d', math.max(0, tonumber(r[4] or '0') - 1))
    fields.received, fields.started = r[5] or 'null', r[6] or 'null'
    if event == 'received' then
      fields.exception, fields.traceback = 'null', 'null'
    elseif event == 'retried' then
      fields.exception = cjson.encode(first_of(note))
    end
    said[#said + 1] = with(r[1] or '{}', fields)
  end
  return publish_tasks(said)
end

-- Tells of a run; returns how many listen.
tell = function(id, events, note, at)
  local is_said, heard = pcall(say, id, events, note, at)
  return is_said and heard or 0
end

-- Tells of an agent: online, heartbeat or offline.
local function tell_of_worker(event, node, worker, at)
  local fields = {type = '"worker-' .. event .. '"', timestamp = stamp(at), hostname = cjson.encode(node)}
  publish('worker.' .. event, with(worker, fields), node)
end
