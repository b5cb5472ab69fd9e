// A worker that fetches JSON. Here a request that fails does so quietly; of a page's own the browser writes each to the console.
const TIME_LIMIT_MS = 20000;

onmessage = async ({ data: { id, url, token } }) => {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  try {
    const response = await fetch(url, { headers, cache: 'no-cache', signal: AbortSignal.timeout(TIME_LIMIT_MS) });
    const body = await response.json().catch(() => null);
    postMessage({ id, status: response.status, body });
  } catch {
    postMessage({ id, status: 0, body: null });
  }
};
