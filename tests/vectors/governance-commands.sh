# The commands that the governance guide documents, as they stand there: what people paste.
curl -s "http://localhost:8080/v1/governance/quotas" | jq
curl -s "http://localhost:8080/v1/governance/quotas/tenant-acme" | jq
curl -s "http://localhost:8080/v1/governance/usage/tenant-acme" | jq
curl -X PATCH "http://localhost:8080/v1/governance/quotas/tenant-acme" \
    -H "Content-Type: application/json" \
    -d '{
      "cpu_cores": 200,
      "reason": "Quarterly capacity increase",
      "expires_at": "2024-04-01T00:00:00Z"
    }'
curl -X PATCH "http://localhost:8080/v1/governance/quotas/tenant-acme" \
    -H "Content-Type: application/json" \
    -d '{
      "cpu_cores": 50,
      "grace_period": "1h",
      "reason": "Cost optimization"
    }'
curl -X POST "http://localhost:8080/v1/governance/quotas/scheduled" \
    -d '{
      "tenant": "tenant-acme",
      "schedule": "0 8 * * 1-5",
      "timezone": "America/New_York",
      "duration": "10h",
      "quotas": {
        "cpu_cores": 200,
        "max_concurrent_tasks": 2000
      }
    }'
curl -s "http://localhost:8080/v1/governance/allocations" | jq
curl -s "http://localhost:8080/v1/governance/allocations/history?period=24h" | jq
curl -s "http://localhost:8080/v1/governance/costs?period=30d" | jq
curl -s "http://localhost:8080/v1/governance/economics/latency-cost" | jq
curl -s "http://localhost:8080/v1/billing/summary?tenant=tenant-acme&month=2024-01" | jq
curl -s "http://localhost:8080/v1/billing/usage?tenant=tenant-acme&start=2024-01-01&end=2024-01-31" > usage.json
curl -s "http://localhost:8080/v1/billing/chargeback?month=2024-01" | jq
curl -s "http://localhost:8080/v1/governance/capacity" | jq
curl -s "http://localhost:8080/v1/governance/capacity/forecast?horizon=90d" | jq
curl -s "http://localhost:8080/v1/governance/optimize/rightsizing" | jq
curl -s "http://localhost:8080/v1/governance/optimize/reservations" | jq
curl -s "http://localhost:8080/v1/governance/optimize/idle" | jq
