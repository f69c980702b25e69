//! A browser without a screen: cookies, forms, and redirects that are followed only on purpose.

use std::collections::BTreeMap;

use reqwest::header::{COOKIE, LOCATION, ORIGIN, SET_COOKIE};
use reqwest::redirect::Policy;

/// A browser. It sends what Chromium sends from a page without a referrer: `Origin: null` and `Sec-Fetch-Site`.
pub struct Browser {
    http: reqwest::Client,
    pub cookies: BTreeMap<String, String>,
    /// The token that its person signs in with, once they have.
    pub token: Option<String>,
}

/// A page, or a redirect.
#[derive(Debug)]
pub struct Page {
    pub url: String,
    pub status: u16,
    pub text: String,
    pub location: Option<String>,
    pub headers: reqwest::header::HeaderMap,
}

impl Browser {
    pub fn new() -> Self {
        let http = reqwest::Client::builder().redirect(Policy::none()).no_proxy().build().unwrap();
        Self { http, cookies: BTreeMap::new(), token: None }
    }

    pub async fn get(&mut self, url: &str) -> Page {
        let request = self.http.get(url);
        self.send(request, url).await
    }

    /// The same by somebody who signs in again with their token, where they are asked to.
    pub async fn visit(&mut self, url: &str) -> Page {
        let page = self.get(url).await;
        let asked = page.text.contains("name=\"token\"") || page.text.contains("with=obo");
        match self.token.clone() {
            Some(token) if asked => {
                let joint = if url.contains('?') { '&' } else { '?' };
                let page = self.get(&format!("{url}{joint}with=obo")).await;
                self.submit(&page, &[("token", &token)]).await;
                self.get(url).await
            }
            _ => page,
        }
    }

    /// Submits the page's one form, with what was typed into it.
    pub async fn submit(&mut self, page: &Page, typed: &[(&str, &str)]) -> Page {
        self.submit_from(page, typed, Some("null"), Some("same-origin")).await
    }

    /// Submits the page's form as another step than the one its button stands for.
    pub async fn submit_step(&mut self, page: &Page, step: &str) -> Page {
        let mut changed = Page {
            text: page.text.clone(),
            url: page.url.clone(),
            status: page.status,
            location: None,
            headers: page.headers.clone(),
        };
        for own in ["sign_in", "sign_out", "connect", "disown"] {
            changed.text = changed.text.replace(&format!("value=\"{own}\""), &format!("value=\"{step}\""));
        }
        self.submit(&changed, &[]).await
    }

    /// Submits as a browser that says it comes from somewhere else.
    pub async fn submit_from(
        &mut self,
        page: &Page,
        typed: &[(&str, &str)],
        origin: Option<&str>,
        site: Option<&str>,
    ) -> Page {
        let mut fields = page.hidden();
        fields.extend(typed.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        let target = url::Url::parse(&page.url).unwrap().join(&page.action()).unwrap();
        let mut request = self.http.post(target.clone()).form(&fields);
        if let Some(origin) = origin {
            request = request.header(ORIGIN, origin);
        }
        if let Some(site) = site {
            request = request.header("sec-fetch-site", site);
        }
        self.send(request, target.as_str()).await
    }

    async fn send(&mut self, mut request: reqwest::RequestBuilder, url: &str) -> Page {
        if !self.cookies.is_empty() {
            let all: Vec<String> = self.cookies.iter().map(|(k, v)| format!("{k}={v}")).collect();
            request = request.header(COOKIE, all.join("; "));
        }
        let response = request.send().await.unwrap();
        for cookie in response.headers().get_all(SET_COOKIE) {
            let pair = cookie.to_str().unwrap().split(';').next().unwrap();
            let (key, value) = pair.split_once('=').unwrap();
            self.cookies.insert(key.to_owned(), value.to_owned());
        }
        Page {
            url: url.to_owned(),
            status: response.status().as_u16(),
            location: response.headers().get(LOCATION).map(|l| l.to_str().unwrap().to_owned()),
            headers: response.headers().clone(),
            text: response.text().await.unwrap(),
        }
    }
}

impl Page {
    /// The hidden fields of the page's first form.
    pub fn hidden(&self) -> Vec<(String, String)> {
        let form = self.text.split("<form ").nth(1).and_then(|rest| rest.split("</form>").next()).unwrap_or_default();
        form.match_indices("<input type=\"hidden\" ")
            .map(|(at, _)| {
                let tag = &form[at..at + form[at..].find('>').unwrap()];
                (attribute(tag, "name"), attribute(tag, "value"))
            })
            .collect()
    }

    fn action(&self) -> String {
        let at = self.text.find("<form ").unwrap_or_else(|| panic!("no form in {}", self.text));
        attribute(&self.text[at..], "action")
    }

    /// How many forms and submit buttons the page has.
    pub fn forms_and_buttons(&self) -> (usize, usize) {
        (self.text.matches("<form ").count(), self.text.matches("<button type=\"submit\"").count())
    }
}

fn attribute(tag: &str, name: &str) -> String {
    let start = tag.find(&format!(" {name}=\"")).unwrap_or_else(|| panic!("no {name} in {tag}")) + name.len() + 3;
    let value = &tag[start..start + tag[start..].find('"').unwrap()];
    value
        .replace("&#34;", "\"")
        .replace("&quot;", "\"")
        .replace("&#38;", "&")
        .replace("&amp;", "&")
        .replace("&#60;", "<")
        .replace("&#62;", ">")
        .replace("&#39;", "'")
}
