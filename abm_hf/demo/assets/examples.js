// Examples as buttons with their picture.
for (const example of props.value || []) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "abm-example";
  button.setAttribute("aria-label", "Example: " + example.label);
  button.title = example.label;
  const image = document.createElement("img");
  image.src = example.image;
  image.alt = "";
  image.width = example.width;
  image.height = example.height;
  button.append(image);
  button.addEventListener("click", () => {
    document.dispatchEvent(new CustomEvent("abm-sent"));
    trigger("pick", { name: example.name });
  });
  element.querySelector(".abm-examples").append(button);
}
