{% include "model_page.js" %}
{% include "browser_backend.js" %}
